"""The kinds of steps, each a function from the rows that go in to those that come out."""
