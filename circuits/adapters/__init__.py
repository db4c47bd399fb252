"""What is known of families of decoders: where each reads and writes its residual stream."""
