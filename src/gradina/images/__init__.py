"""The texts that pictures' files carry, and what the programs that wrote them mean by them."""
