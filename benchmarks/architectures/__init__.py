"""Every architecture of a current host, and every format of weights, through sampling, training and back."""
