"""From a request to pictures: where networks and mathematics meet to draw."""
