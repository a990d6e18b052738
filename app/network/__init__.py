"""The networks in pure torch: ResNet, DAFT, U-Net, ensemble and their computing backends."""
