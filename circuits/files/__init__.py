"""Files of any kind: read with suspicion, written completely or not at all, and the journal of what is measured."""
