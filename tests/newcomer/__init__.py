"""What somebody new adds, each in one file: a loss, a data set, a sampler, an optimizer's rule, an average."""
