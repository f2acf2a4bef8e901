"""W&B's own offline folders, of scripts that keep no journal."""
