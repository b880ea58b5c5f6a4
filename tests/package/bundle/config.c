/* Prints the version, and why CUDA is on or off. */
#include <penstock/c.h>
#include <stdio.h>

int main(void) {
  penstock_config config;
  if (penstock_get_config(&config, sizeof config) != PENSTOCK_OK) return 1;
  printf("%s\n%s\n", config.version, config.cuda_status);
  return 0;
}
