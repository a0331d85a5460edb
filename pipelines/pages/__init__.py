"""What serves our web pages, and lets only authorized requests through to them."""
