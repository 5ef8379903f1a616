"""What all experiments share: data, the training loop, reports."""
