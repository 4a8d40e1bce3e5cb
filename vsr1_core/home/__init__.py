"""What people do with a home: search it, query it, ask why a row has to be made, share it. Stages never import it."""
