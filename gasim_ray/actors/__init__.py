"""The thin Ray layer: generator actors, the learner actor, and the loop between them."""
