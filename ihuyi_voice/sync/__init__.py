"""The blocking client, built on the asyncio client."""
