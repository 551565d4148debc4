"""The blocking client, over the asyncio one."""
