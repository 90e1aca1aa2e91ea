"""A clip, picture by picture: ``reading`` a file or a ``webcam``, ``writing`` one, its ``sound``, and how it is seen."""
