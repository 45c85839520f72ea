"""Several processes and machines that train one run, and weights divided over them."""
