"""The command `nemotron`: the table of its verbs, and the verb `chat`."""
