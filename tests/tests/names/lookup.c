/* Looks a name up as programs do, and prints the addresses that it got, a line each. Built against glibc and musl. */

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    struct addrinfo hints, *found, *each;
    char text[INET6_ADDRSTRLEN];
    int error;

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    error = getaddrinfo(argc > 1 ? argv[1] : "", NULL, &hints, &found);
    if (error != 0) {
        /* EAI_NONAME and its kin differ between libraries: the words are enough. */
        printf("%s\n", error == EAI_AGAIN ? "try again" : error == EAI_NONAME ? "no such name" : gai_strerror(error));
        return 1;
    }
    for (each = found; each != NULL; each = each->ai_next) {
        const void *address = each->ai_family == AF_INET
            ? (void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr;
        printf("%s\n", inet_ntop(each->ai_family, address, text, sizeof text));
    }
    return 0;
}
