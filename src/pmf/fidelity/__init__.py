"""FID and its companions end to end: what is measured, what it is compared with, what the result file says."""
