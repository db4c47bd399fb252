"""Where models come from: the built-in ones, the Hugging Face hub, local folders; loaded onto a device."""
