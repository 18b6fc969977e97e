"""From C to a program image: the source, BCC as its compiler, and the images that came of it."""
