"""What lies on the disk: files and folders identified from their headers alone, without torch."""
