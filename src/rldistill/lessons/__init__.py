"""What is learnt from: streams of labelled batches, exploration, and learners from reward."""
