"""The dashboard: what a run did and does, and what people wish of it. Knows files and the status, no part."""
