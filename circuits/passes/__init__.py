"""What is measured on one batch of recorded prompts: masked runs, exact effects, attribution, gradients of the mask."""
