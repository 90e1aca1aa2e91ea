"""How the losses of the tasks become one gradient: a file per idea, ``build`` chooses."""
