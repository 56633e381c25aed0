"""Image sets: by URI, made up (phantoms), imported from what people have, and fetched by name."""
