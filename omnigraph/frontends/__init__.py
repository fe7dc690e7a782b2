"""Where models come from: modules, files and folders, each read as Programs."""
