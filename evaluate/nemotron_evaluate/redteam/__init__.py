"""The verb `redteam`: garak's attacks on a server, and a table of what got through."""
