"""Pages and pictures that need nothing else: HTML files in one frame, charts as SVG, numbers as people read them."""
