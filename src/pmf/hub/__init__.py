"""Models as folders and repositories for the Hugging Face hub, with a model card and a diffusers pipeline."""
