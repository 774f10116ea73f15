"""What the HTML page consists of: one file per section, and the frame around them."""
