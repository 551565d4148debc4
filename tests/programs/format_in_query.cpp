// As the vendor's Go demo and several C++ programs: `format=json` is in the query of a POST,
// the other fields are in its body. The answer is read as JSON.

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <iostream>
#include <regex>
#include <string>

static std::string found(const std::string& pattern, const std::string& text) {
    std::smatch match;
    return std::regex_search(text, match, std::regex(pattern)) ? match[1].str() : "none";
}

int main(int, char** given) {
    const std::string url = given[1], account = given[2], key = given[3];
    const std::string mobile = given[4], content = given[5];
    const std::string place = url.substr(url.find("//") + 2);
    const std::string host = place.substr(0, place.find(':'));
    const std::string port = place.substr(place.find(':') + 1);
    const std::string form = "account=" + account + "&password=" + key + "&mobile=" + mobile +
                             "&content=" + content;
    const std::string request = "POST /webservice/voice.php?method=Submit&format=json HTTP/1.1\r\n"
                                "Host: " + place + "\r\nConnection: close\r\n"
                                "Content-Type: application/x-www-form-urlencoded\r\n"
                                "Content-Length: " + std::to_string(form.size()) + "\r\n\r\n" + form;
    addrinfo hints{}, *address = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &address) != 0) return 1;
    const int connection = socket(address->ai_family, address->ai_socktype, 0);
    if (connect(connection, address->ai_addr, address->ai_addrlen) != 0) return 1;
    freeaddrinfo(address);
    if (write(connection, request.data(), request.size()) < 0) return 1;
    std::string answer;
    char buffer[4096];
    for (ssize_t count; (count = read(connection, buffer, sizeof buffer)) > 0;) {
        answer.append(buffer, count);
    }
    close(connection);
    std::cout << found("\"code\":([0-9]+)", answer) << " "
              << found("\"msg\":\"([^\"]*)\"", answer) << " "
              << found("\"voiceid\":\"([0-9]+)\"", answer) << "\n";
}
