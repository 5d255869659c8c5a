"""`python -m rescue_virt`."""

from rescue_virt.cli.main import main

if __name__ == "__main__":
    main()
