"""The paper's perceptual losses: a paired random crop, LPIPS-VGG16 and ConvNeXt-V2 features, all frozen."""
