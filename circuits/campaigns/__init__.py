"""Many runs as one job: campaigns of commands, and one exact sweep shared among many workers.

A *job* is a command of this package; a *worker* is a process that runs one after the other, on this machine or another.
What is finished is told from the files that commands leave (:mod:`circuits.recording`), and what a command had measured
when it was stopped from its journal. So a campaign goes on wherever, and however, it was stopped.
"""
