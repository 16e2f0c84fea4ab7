# The flags matter: results are the same bits everywhere only if no product is fused with a sum.
CFLAGS = -std=c99 -O2 -ffp-contract=off -Wall -Wextra -Werror -pedantic

main: main.o model.o
	$(CC) $(CFLAGS) -o $@ main.o model.o

main.o model.o: model.h

clean:
	rm -f main main.o model.o

.PHONY: clean
