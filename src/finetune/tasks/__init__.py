"""What is predicted: one class an image, and whatever comes to stand beside it."""
