"""What a person needs around the layers: raw text or series in, a trusted classifier out. Its libraries are the
``[toolkit]`` extra; nothing here is imported before it is used."""
