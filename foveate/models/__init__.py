"""Complete networks, in folders by what they read."""
