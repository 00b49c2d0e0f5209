"""From a source to a bundle directory: the plan, the builder, its workarounds, what is kept between builds."""
