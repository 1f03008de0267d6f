"""A tiny reward model: the tiny Nemotron with a head that was trained on its own answers."""
