"""What people do with a home: search it, query it, ask why a row is due, share it. Stages never import it."""
