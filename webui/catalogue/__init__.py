"""What lies on the disk: files and folders identified from their headers, without torch and without weights."""
