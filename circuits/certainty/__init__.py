"""How sure a finding is: tests of nodes, stability of circuits, groups of prompts."""
