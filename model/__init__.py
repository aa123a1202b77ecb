"""What a trained model is on disk: checkpoints, model folders, weights of other projects."""
