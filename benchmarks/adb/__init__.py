"""Android devices through the `adb` client: find one, look at it, run something on it."""
