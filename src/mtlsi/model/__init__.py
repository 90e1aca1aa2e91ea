"""What the network computes, part by part in the order the data meets them; ``kernels/`` says how."""
