"""Who judges pictures of scenes: readers of captions and features, and what they say of many."""
