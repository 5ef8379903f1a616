"""DNA: files, tasks, floors and experiments over any attention of jaxattn."""
