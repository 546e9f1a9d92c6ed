"""What a run reports while it goes on: times, metrics, TensorBoard, traces."""
