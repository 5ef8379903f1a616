"""Images, pixel by pixel, with any causal method."""
